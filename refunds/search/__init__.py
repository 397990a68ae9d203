"""What was typed -> folded -> orders, newest first, by a bounded number of statements whatever the number of orders.

How a search works, for 田中太郎:

1. typed: the text is cleaned and folded; it becomes a needle for all of it, and one for each of several words.
2. tiers: the needles become tiers, and each tier branches of SQL. A tier finds, newest first, the orders
   a. of which a column is exactly what was typed: 田中太郎
   b. of which a column begins with it, or whose id ends in it: 田中太郎左衛門
   c. whose name or kana holds it, two characters at least, or whose mail is of this domain: 山田中太郎
   d. of which, for several words, each word is a column, begins one, or is the mail's domain: 田中太郎 for `太 田`.
      This tier is asked only where none of the others finds anything.
3. pages: a page is filled from the first tier on. A tier is asked only where those before it do not fill the page, and
   the page's cursor names the tier in which it ends.

No statement counts all rows or skips some (COUNT, OFFSET). Every branch is a range of an index that ends in the order's
key: Note [Keys in time order] in order_keys.py. Where a bound on the work left something out, the result says that it
is partial.

The modules, each importing only from those before it:

- sql: how statements are sent
- typed: what was typed -> needles and words
- filters: what narrows a list, and its conditions in SQL
- terms: a needle -> branches and conditions of SQL
- tiers: branches -> rows, tier by tier
- history: what is remembered of searches
- pages: rows -> pages, their cursors, and what of each order matched

The reasons are in docs/decisions/0004-mirror-and-search.md.
"""

from refunds.search.filters import ANY_STATUS, IN_PROGRESS, STATUSES, Filters
from refunds.search.history import KEPT, Remembered, Saved, hashes, remembered, words
from refunds.search.pages import Found, Result, find, list_orders, whole_order_id
from refunds.search.tiers import PAGE
from refunds.search.typed import as_typed

__all__ = [
    "ANY_STATUS",
    "IN_PROGRESS",
    "KEPT",
    "PAGE",
    "STATUSES",
    "Filters",
    "Found",
    "Remembered",
    "Result",
    "Saved",
    "as_typed",
    "find",
    "hashes",
    "list_orders",
    "remembered",
    "whole_order_id",
    "words",
]
