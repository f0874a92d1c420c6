"""Faults as programs: processes, disks, power and networks fail under load, and what was promised
is compared with what is there. `python -m tests.faults --help`."""
