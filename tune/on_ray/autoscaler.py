"""What a cluster's autoscaler says: whether there is one, what it starts, what it can't place."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]
    GetClusterStatusReply,
)
from ray.experimental.internal_kv import _internal_kv_get, internal_kv_get_gcs_client

Request = Mapping[str, float]


@dataclass(frozen=True)
class Autoscaler:
    """The state of an autoscaler.

    Attributes:
        coming: Types of the nodes that it is starting.
        failed: Which nodes could not be started, and why, as far as it knows.
        refused: Requests that no node it could start would meet.
    """

    coming: tuple[str, ...]
    failed: tuple[str, ...]
    refused: tuple[Request, ...]


def autoscaler() -> Autoscaler | None:
    """Return what the autoscaler of the cluster that was joined says; None if it has none."""
    if is_autoscaler_v2(fetch_from_server=True):
        reply = GetClusterStatusReply()
        reply.ParseFromString(internal_kv_get_gcs_client().get_cluster_status())
        state = reply.autoscaling_state
        waiting = (*state.pending_instance_requests, *state.pending_instances)
        return Autoscaler(
            coming=tuple(found.ray_node_type_name for found in waiting),
            failed=_once(
                f"{found.ray_node_type_name} {found.reason}".strip()
                for found in state.failed_instance_requests
            ),
            refused=tuple(
                dict(found.resources_bundle) for found in state.infeasible_resource_requests
            ),
        )
    return _first_version(json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}"))


def _first_version(status: Mapping[str, Any]) -> Autoscaler | None:
    """Return what version 1 reports, which every head runs, also without nodes to start.

    It names such nodes after their ids. It doesn't say what it can't place.
    """
    report = status.get("autoscaler_report")
    if report is None or any(kind.startswith("node_") for kind in report["active_nodes"]):
        return None
    pending = [kind for _, kind, *_ in report.get("pending_nodes") or ()]
    launched = list(report.get("pending_launches") or ())
    failed = _once(kind for _, kind in report.get("failed_nodes") or ())
    return Autoscaler(coming=(*launched, *pending), failed=failed, refused=())


def _once(reasons: Iterable[str]) -> tuple[str, ...]:
    """Return each reason once: an autoscaler tries again and again."""
    return tuple(dict.fromkeys(reasons))
