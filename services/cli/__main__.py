"""`python -m services.cli` is `convo`."""

from services.cli import main

main()
