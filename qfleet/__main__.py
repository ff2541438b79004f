"""Makes `python -m qfleet` run the command `qfleet`."""

from qfleet.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
