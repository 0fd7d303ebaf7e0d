"""What a job runs: studies, and the data, models, methods and scores they are made of.

Nothing here knows of the queue, of Slurm or of a grid.
"""

import warnings

# Sacred 0.8.7 asks for pkg_resources; our dependencies are bounded so that it is there.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
