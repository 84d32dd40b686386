"""Modules that a process imports once when many are to be forked from it: imports are most of a short life."""

PUBLISHER = (
    "wandb.apis.public.runs",
    "wandb.sdk.wandb_init",
    "wandb.sdk.wandb_run",
    "wandb.sdk.artifacts.artifact",
    "wandb.sdk.lib.service.service_connection",
    "wandb.proto.wandb_internal_pb2",
    "wandb.proto.wandb_api_pb2",
    "requests",
    "plotly.graph_objects",
    "wandb_workspaces.reports.v2",
    "recorder.refresh",
    "recorder.report.facts",
)
