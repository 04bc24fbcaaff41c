"""Settings of the unit tests.

The cache (CLAIR_CACHE, or the user's) is left as it is: its keys hold everything that its contents
depend on, so a warm one saves time and changes nothing.  `.ci/run` sets an empty one.
"""

import os

os.environ["TQDM_DISABLE"] = "1"
