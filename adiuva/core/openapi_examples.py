"""An example of each request body, by the operation's id in the OpenAPI document.

tests/clients sends them to a running server. Tokens, tickets and ids in them stand for values from other answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_ID: Final = "3f8a1c52-6f0e-4a8b-9d43-0c7f5e2b1a96"
_PASSWORD: Final = {"password": "correct horse battery staple"}
_CREDENTIALS: Final = {"email": "mara@studio.example", **_PASSWORD}
_PASSKEY: Final = {
    "handle": "the handle from the options",
    "credential": {"id": "…", "rawId": "…", "type": "public-key", "response": {}},
}
_LOCAL_AGENT: Final = {
    "name": "Clients",
    "device_id": "studio-desktop",
    "directory_paths": ["/home/mara/Documents/clients"],
    "data_types": ["tasks", "notes", "timelines"],
    "file_extensions": [".md", ".txt", ".eml"],
    "prompt_template": "Find what I promised to somebody, and until when.",
    "schedule_cron": "0 8 * * 1-5",
    "timezone": "Europe/Rome",
}
_CLOUD_AGENT: Final = {
    "name": "Promises in my mail",
    "provider": "gmail",
    "data_types": ["tasks"],
    "prompt_template": "Find what I promised to somebody, and until when.",
    "schedule_cron": "0 * * * *",
    "timezone": "Europe/Rome",
}
_POLICY: Final = {"enabled": True, "tiers": {}}
_SOURCE: Final = {"source": {"kind": "conversation", "id": _ID, "seq": 1}}

_RECORD: Final = {
    "table": "notes",
    "blob": "c2VhbGVk",
    "checksum": "c9d0036bed6744bcdf692fc980d8717d7e5f5a4f4e8266b4a84982602fb1cd09",
}

EXAMPLES: Final[Mapping[str, Any]] = {
    "account_export": _PASSWORD,
    "agents_cloud_create": _CLOUD_AGENT,
    "agents_cloud_update": _CLOUD_AGENT,
    "agents_cloud_partial_update": {"enabled": False},
    "agents_journey_message": {"session_id": _ID, "message": "/home/mara/Documents/clients"},
    "agents_journey_start": {"agent_type": "local_directory"},
    "agents_keep": {"agent_ids": [_ID]},
    "agents_local_create": _LOCAL_AGENT,
    "agents_local_update": _LOCAL_AGENT,
    "agents_local_partial_update": {"enabled": False},
    "auth_email_change_create": {"email": "mara@new.example", **_PASSWORD},
    "auth_email_confirm_change_create": {"token": "the token from the mail"},
    "auth_email_verify_create": {"token": "the token from the mail"},
    "auth_login_create": _CREDENTIALS,
    "auth_login_passkey_create": _PASSKEY,
    "auth_login_passkey_options_create": {},
    "auth_login_second_factor_create": {"ticket": "the ticket from the refusal", "code": "123456"},
    "auth_me_partial_update": {"timezone": "Europe/Rome", "locale": "it-IT"},
    "auth_passkeys_create": {**_PASSKEY, "name": "Phone"},
    "auth_passkeys_register_options_create": _PASSWORD,
    "auth_password_create": {
        "current_password": "correct horse battery staple",
        "new_password": "another battery staple",
    },
    "auth_password_reset_create": {"email": "mara@studio.example"},
    "auth_password_reset_confirm_create": {
        "token": "the token from the mail",
        "new_password": "another battery staple",
    },
    "auth_recovery_codes_create": _PASSWORD,
    "auth_refresh_create": {"refresh_token": "the newest refresh token"},
    "auth_register_create": _CREDENTIALS,
    "auth_totp_create": _PASSWORD,
    "auth_totp_confirm_create": {"code": "123456"},
    "chat": {
        "message": "What is due this week?",
        "context": {"conversation_history": [{"role": "user", "content": "I am back at work."}]},
    },
    "chat_conversations_partial_update": {"title": "Harbour Café", "memory": False},
    "billing_checkout": {"tier": "pro", "seats": 1},
    "team_rename": {"name": "Harbour Studio"},
    "team_seats": {"seats": 5},
    "team_invite": {"email": "rosa@harbour.example"},
    "team_accept": {"invitation": "of the link"},
    "team_sso_set": {
        "issuer": "https://login.harbour.example",
        "client_id": "adiuva",
        "secret": "of this client",
        **_PASSWORD,
    },
    "team_sso_require": {"is_required": True, **_PASSWORD},
    "team_sso_domain_add": {"name": "harbour.example"},
    "auth_sso_begin": {
        "email": "rosa@harbour.example",
        "challenge": "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM",
    },
    "auth_sso_finish": {
        "code": "of the link back to the app",
        "verifier": "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    },
    "developer_become": {"handle": "ink-and-paper", "name": "Ink and paper"},
    "plugin_agent_try_out": {
        "device_id": "studio-desktop",
        "directory_paths": ["/home/mara/Documents/clients"],
    },
    "plugin_give": {"handle": "harbour-tools"},
    "plugin_install": {"permissions": ["files.read", "timelines.write"]},
    "billing_webhook": {"id": "evt_1", "object": "event"},
    "memory_create": {"key": "billing", "content": "I bill monthly."},
    "memory_partial_update": {"content": "I bill at the end of each month."},
    "memory_forget": _SOURCE,
    "memory_policy_set": _POLICY,
    "memory_policy_change": {"enabled": False},
    "memory_search": {"q": "how do I bill", "limit": 5},
    "memory_take_back": _SOURCE,
    "oauth_complete": {"completion": "the completion from the address that the provider returned to"},
    "oauth_refresh": {},
    "storage_vectors_embed": {"text": "Send two layout drafts to the Harbour Café."},
    "storage_records_create": _RECORD,
    "storage_vectors_upsert": {
        "vectors": [
            {
                "id": "note 1",
                "vector": [0.25, -0.5, 1],
                "blob": _RECORD["blob"],
                "checksum": _RECORD["checksum"],
            }
        ]
    },
    "storage_vectors_search": {"vector": [0.25, -0.5, 1], "top_k": 5},
    "storage_vectors_destroy": {"ids": ["note 1"]},
    "storage_records_update": {name: _RECORD[name] for name in ("blob", "checksum")},
    "plugins_create": {"slug": "weekly-report", "name": "Weekly report", "category": "planning"},
    "plugins_partial_update": {"category": "finance"},
    "plugins_rate": {"stars": 5},
    "plugins_report": {"reason": "broken", "text": "It does not open."},
    "plugins_submit": {"notes": "It reads tasks alone."},
    "plugins_yank": {"reason": "1.2.1 mends it."},
}
