"""`python -m sparsekernels`, the same as the `sparsekernels` command."""

from ._cli import main

main()
