"""Who runs what where: grids, the queue, workers, Slurm, the result store, the `assay` command."""

import experiments as experiments  # quiets a warning of Sacred's before anything imports it
