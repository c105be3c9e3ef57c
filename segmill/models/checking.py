"""Every member is built before anything is trained, so that a wrong name stops a run at once. Light to import."""

from __future__ import annotations

from dataclasses import dataclass

from segmill.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NetworkToCheck:
    """A network member: ``aux_heads`` are names, ``deep_supervision`` is whether it has any."""

    name: str
    backbone: str
    decoder: str
    weights: str
    decoder_width: float = 1.0
    attention: str = "none"
    context: str = "none"
    aux_heads: tuple[str, ...] = ()
    deep_supervision: bool = False


@dataclass(frozen=True, kw_only=True)
class SvmToCheck:
    """A classical member: ``backbone`` of the features cnn, or None."""

    name: str
    features: tuple[str, ...]
    backbone: str | None
    weights: str


ToCheck = NetworkToCheck | SvmToCheck


def check_members(members: tuple[ToCheck, ...]) -> None:
    """Build each member's network and load its weights, so that an error shows before any training.

    Raises:
        InputError: a line for every member that can't be built or whose weights can't be reached or don't fit.
    """
    faults = []
    for member in members:
        try:
            _check_svm(member) if isinstance(member, SvmToCheck) else _check_network(member)
        except InputError as fault:
            faults.append(f"member {member.name}: {fault}")
    if faults:
        raise InputError("\n".join(faults))


def _check_network(member: NetworkToCheck) -> None:
    from segmill.models.members import MemberSpec, build
    from segmill.models.weights import load_into, resolve

    spec = MemberSpec(
        member.name,
        member.backbone,
        member.decoder,
        num_classes=2,
        decoder_width=member.decoder_width,
        attention=member.attention,
        context=member.context,
        heads=member.aux_heads,
        deep_supervision=member.deep_supervision,
    )
    load_into(build(spec).encoder, resolve(member.weights, member.backbone))


def _check_svm(member: SvmToCheck) -> None:
    from segmill.models.svm.member import check_svm

    check_svm(member.features, member.backbone, member.weights)
