"""APIs of other servers.

A new one is a folder here, and a line below: a table of its fields (fields.py), its error shape, and routes that reach
jobs by JobAccess (dialect.py). tests/unit/tiny_dialect.py is the shortest.
"""

from api.dialects.acestep import DIALECT as ACESTEP
from api.dialects.seed import DIALECT as SEED

# In the order in which they add to answers that several have.
DIALECTS = (
    SEED,
    ACESTEP,
)
