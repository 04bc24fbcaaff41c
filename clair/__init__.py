"""CLAIR: zero-shot cross-domain image retrieval from unlabelled pictures, the library of the book.

The names stand in the order in which a reader of the book meets them.
"""

from clair.datasets import Benchmark, load_benchmark
from clair.clip import Clip, load_clip
from clair.retrieval import evaluate, search
from clair.pseudo_labels import PseudoLabels, pseudo_label
from clair.losses import inter_instance, inter_cluster, inter_domain
from clair.mapping import DomainMap, domain_map
from clair.training import Fitted, Recipe, fit
from clair.experiment import run

__version__ = "0.1.0"

__all__ = [
    "Benchmark", "load_benchmark",
    "Clip", "load_clip",
    "evaluate", "search",
    "PseudoLabels", "pseudo_label",
    "inter_instance", "inter_cluster", "inter_domain",
    "DomainMap", "domain_map",
    "Fitted", "Recipe", "fit",
    "run",
]  # fmt: skip
