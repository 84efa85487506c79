"""Alpha rules, in one file each. Every file here is imported and registers its rules.

A rule is a function `(groups, context) -> (low, high)` with the decorator `@alpha_rule("<name>")`, which makes it
available as `quant.alpha_rule=<name>`. `groups` has shape (G, n), with one row per group of weights that shares a
range; `low` and `high` have shape (G,). On a symmetric grid, the clipping value alpha is the larger magnitude.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
