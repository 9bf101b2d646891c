"""`python -m parity.study`: does a training result depend on the framework?"""

import sys

from data.base.errors import run_command
from parity.study.command import main

if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
