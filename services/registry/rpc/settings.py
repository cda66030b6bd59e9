"""SettingsService."""

from __future__ import annotations

from typing import Any, Final

from qflow.registry.v1 import settings_service_pb2 as pb
from qflow.registry.v1 import settings_service_pb2_grpc as pb_grpc
from qflow.types import dump_exact

from services.kit.caller import current_caller
from services.kit.rpc import codec
from services.registry.domain.setting_table import SETTINGS, Level, Setting
from services.registry.usecases.effective_settings import Effective, get_effective_settings
from services.registry.usecases.workflows import Workflows

_LEVELS: Final = {
    None: pb.SETTING_LEVEL_DEFAULT,
    Level.DEPLOYMENT: pb.SETTING_LEVEL_DEPLOYMENT,
    Level.WORKFLOW: pb.SETTING_LEVEL_WORKFLOW,
    Level.NODE: pb.SETTING_LEVEL_NODE,
}


class SettingsServicer(pb_grpc.SettingsServiceServicer):
    """Serves the schema and the effective values of settings."""

    def __init__(self, deps: Workflows) -> None:
        self._deps = deps

    async def GetSettingsSchema(
        self, request: pb.GetSettingsSchemaRequest, context: Any
    ) -> pb.GetSettingsSchemaResponse:
        """See the contract."""
        return pb.GetSettingsSchemaResponse(settings=[_setting(each) for each in SETTINGS])

    async def GetEffectiveSettings(
        self, request: pb.GetEffectiveSettingsRequest, context: Any
    ) -> pb.GetEffectiveSettingsResponse:
        """See the contract."""
        found = await get_effective_settings(
            self._deps,
            current_caller(),
            codec.uuid_from(request.workflow_id, field="workflow_id"),
            request.version,
            request.workflow_node,
        )
        return pb.GetEffectiveSettingsResponse(settings=[_effective(each) for each in found])


def _setting(setting: Setting) -> pb.Setting:
    return pb.Setting(
        name=setting.name,
        description=setting.description,
        value_kind=setting.kind,
        unit=setting.unit,
        default_value=setting.default,
        minimum=setting.minimum,
        maximum=setting.maximum,
        levels=[_LEVELS[each] for each in setting.levels],
        enforced_by=setting.enforced_by,
        enforcement=setting.enforcement,
    )


def _effective(effective: Effective) -> pb.EffectiveSetting:
    return pb.EffectiveSetting(
        name=effective.setting.name,
        value_json=dump_exact(effective.value),
        source=_LEVELS[effective.level],
        enforced_by=effective.setting.enforced_by,
    )
