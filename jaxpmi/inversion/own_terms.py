"""Terms of one's own in the loss of an inversion: any function of the images."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import NamedTuple

import jax

from jaxpmi.lookup import find


class OwnTerm(NamedTuple):
    """One more term of the loss.

    Attributes:
      name: in `Synthetic.terms`; none of the library's own.
      function: maps images f32[B, H, W, channels], normalised, to f32[]; differentiable. A function
        of a module, not a lambda: programs are looked up by it.
      weight: what it is multiplied by.
    """

    name: str
    function: Callable[[jax.Array], jax.Array]
    weight: float


def find_own_terms(texts: Sequence[str], field: str) -> tuple[OwnTerm, ...]:
    """The terms that a config names, each as `module:function=weight`.

    Raises:
      ValueError: a text of another form, or a function that is not there.
    """
    terms = []
    for text in texts:
        name, _, weight = text.rpartition("=")
        try:
            weight = float(weight)
        except ValueError:
            weight = None
        if ":" not in name or weight is None:
            raise ValueError(f"{field} has {text!r}; expected 'module:function=weight'.")
        terms.append(OwnTerm(name.partition(":")[2], find(name, {}, field), weight))
    return tuple(terms)


def add_own_terms(
    named: dict[str, jax.Array], images: jax.Array, terms: Sequence[OwnTerm]
) -> dict[str, jax.Array]:
    """The library's terms and one's own, on the same images.

    Raises:
      ValueError: a name that is taken, or a term that is no scalar.
    """
    named = dict(named)
    for term in terms:
        if term.name in named:
            raise ValueError(f"a term is called {term.name!r} already; name yours otherwise.")
        value = term.function(images)
        if value.shape != ():
            raise ValueError(
                f"the term {term.name!r} has shape {value.shape}; expected a scalar f32[]."
            )
        named[term.name] = value
    return named


def own_weights(terms: Sequence[OwnTerm]) -> dict[str, float]:
    """Weights of one's own terms by name."""
    return {term.name: term.weight for term in terms}
