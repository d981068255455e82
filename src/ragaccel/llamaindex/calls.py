"""What decides a LlamaIndex component's answer besides what it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragaccel.fingerprint import class_name, fingerprint, visible

if TYPE_CHECKING:
    from ragaccel.seam import Options


def identity(component: Any, options: Options) -> Any:
    """Tell a component apart from others: by its live settings, or by the user's name for it.

    Raises:
        Uncacheable: It has settings that have no canonical form, and no name.
    """
    if options.identity is None:
        return fingerprint(component)
    return class_name(type(component)), options.identity, visible(component)
