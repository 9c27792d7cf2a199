"""APIs of other servers. A new one is a folder here, and a line below."""

from api.dialects.acestep import DIALECT as ACESTEP
from api.dialects.seed import DIALECT as SEED

# In the order in which they add to answers that several have.
DIALECTS = (
    SEED,
    ACESTEP,
)
