"""The proof that both frameworks compute the same TRUNK, and conversion between them."""

import trunk_sisters

trunk_sisters.check()
