"""APIs of other servers.

A new one is a folder here: a table of its fields (fields.py), its error shape, and routes that reach jobs by JobAccess
(dialect.py). It is named below and in the contract in pyproject.toml, without which `make lint` fails.
tests/unit/tiny_dialect.py is the shortest (docs/decisions/0021).
"""

from api.dialects.acestep import DIALECT as ACESTEP
from api.dialects.chat import DIALECT as CHAT
from api.dialects.seed import DIALECT as SEED

# In the order in which they add to answers that several have.
DIALECTS = (
    SEED,
    ACESTEP,
    CHAT,
)
