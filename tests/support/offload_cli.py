"""The command line with a stand-in for a graphics card (native/stand_in.cpp) that fails during a computation.

python tests/support/offload_cli.py LIBRARY N_GRAPHS COMMAND ...    every graph fails after the first N_GRAPHS
"""

from __future__ import annotations

import sys

from offload_runs import registered

from bimedix_edge.cli.main import main

if __name__ == "__main__":
    library = registered(sys.argv[1], 1)
    library.stand_in_fail_after(int(sys.argv[2]))
    del sys.argv[1:3]
    main()
