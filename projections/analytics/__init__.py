"""The ledger as SQL tables in DuckDB: rows (pure), prices, the tables, and safe SQL over them."""
