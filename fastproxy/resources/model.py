"""What all schema models share: strictness, and which fields are known but not supported yet."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationInfo

from fastproxy.resources.fields import Name, fail


class Model(BaseModel):
    """Field names are Istio's. ``later``: known, not supported yet; ``ours_later``: so of fastproxy/v1."""

    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=False)
    later: ClassVar[frozenset[str]] = frozenset()
    ours_later: ClassVar[frozenset[str]] = frozenset()


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def ours(value: Any, info: ValidationInfo) -> Any:
    """A before-validator of a field that only ``apiVersion: fastproxy/v1`` has."""
    if not (info.context or {}).get("ours"):
        fail("is a field of apiVersion fastproxy/v1")
    return value


def one_of(model: Model, *names: str) -> str:
    """The one of these fields that is given; anything else is an error."""
    given = sorted(model.model_fields_set.intersection(names), key=names.index)
    if len(given) != 1:
        options = ", ".join(names)
        fail(f"exactly one of {options} is needed" + (f", not {' and '.join(given)}" if given else ""))
    return given[0]


class Metadata(Model):
    """Kubernetes' object metadata; what only Kubernetes uses is accepted as it is."""

    name: Name
    namespace: Name = "default"
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    uid: Any = None
    resourceVersion: Any = None
    generation: Any = None
    generateName: Any = None
    creationTimestamp: Any = None
    deletionTimestamp: Any = None
    deletionGracePeriodSeconds: Any = None
    managedFields: Any = None
    ownerReferences: Any = None
    finalizers: Any = None
    selfLink: Any = None
