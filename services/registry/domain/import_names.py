"""Modules whose distribution has another name: chosen ones, and those that very many install."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

DISTRIBUTIONS: Final[Mapping[str, str]] = {
    "Crypto": "pycryptodome",
    "Cryptodome": "pycryptodomex",
    "MySQLdb": "mysqlclient",
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "absl": "absl-py",
    "ansible": "ansible-core",
    "apiclient": "google-api-python-client",
    "attr": "attrs",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "discord": "discord-py",
    "dns": "dnspython",
    "docx": "python-docx",
    "dotenv": "python-dotenv",
    "faiss": "faiss-cpu",
    "fitz": "pymupdf",
    "git": "gitpython",
    "github": "pygithub",
    "gitlab": "python-gitlab",
    "googleapiclient": "google-api-python-client",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "grpc_status": "grpcio-status",
    "gym": "gymnasium",
    "imblearn": "imbalanced-learn",
    "jose": "python-jose",
    "jwt": "pyjwt",
    "kafka": "kafka-python",
    "ldap": "python-ldap",
    "magic": "python-magic",
    "memcache": "python-memcached",
    "mpl_toolkits": "matplotlib",
    "mysql": "mysql-connector-python",
    "nacl": "pynacl",
    "odf": "odfpy",
    "osgeo": "gdal",
    "past": "future",
    "pkg_resources": "setuptools",
    "pptx": "python-pptx",
    "psycopg2": "psycopg2-binary",
    "pwiz": "peewee",
    "pylab": "matplotlib",
    "pythoncom": "pywin32",
    "ruamel": "ruamel-yaml",
    "serial": "pyserial",
    "shapefile": "pyshp",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "slugify": "python-slugify",
    "snowflake": "snowflake-connector-python",
    "socketio": "python-socketio",
    "socks": "pysocks",
    "stdnum": "python-stdnum",
    "telegram": "python-telegram-bot",
    "tlz": "toolz",
    "umap": "umap-learn",
    "usb": "pyusb",
    "websocket": "websocket-client",
    "win32api": "pywin32",
    "wx": "wxpython",
    "xdg": "pyxdg",
    "yaml": "pyyaml",
    "zmq": "pyzmq",
}


@cache
def widely_known() -> Mapping[str, str]:
    """Give what `requirements/import_names.py` found in the index; part of this code, read once."""
    text = Path(__file__).with_name("import_names.tsv").read_text(encoding="utf-8")
    return dict(line.split("\t") for line in text.splitlines())


# Packages that many distributions share: the longer name tells.
NAMESPACES: Final[Mapping[str, Mapping[str, str]]] = {
    "google": {
        "google.auth": "google-auth",
        "google.oauth2": "google-auth",
        "google.protobuf": "protobuf",
        "google.rpc": "googleapis-common-protos",
        "google.api": "googleapis-common-protos",
        "google.api_core": "google-api-core",
        "google.genai": "google-genai",
        "google.generativeai": "google-generativeai",
        "google.cloud.storage": "google-cloud-storage",
        "google.cloud.bigquery": "google-cloud-bigquery",
        "google.cloud.pubsub": "google-cloud-pubsub",
        "google.cloud.pubsub_v1": "google-cloud-pubsub",
        "google.cloud.firestore": "google-cloud-firestore",
        "google.cloud.secretmanager": "google-cloud-secret-manager",
    },
    "azure": {
        "azure.storage.blob": "azure-storage-blob",
        "azure.identity": "azure-identity",
        "azure.keyvault.secrets": "azure-keyvault-secrets",
        "azure.cosmos": "azure-cosmos",
        "azure.servicebus": "azure-servicebus",
    },
    "opentelemetry": {
        "opentelemetry.sdk": "opentelemetry-sdk",
        "opentelemetry.trace": "opentelemetry-api",
        "opentelemetry.metrics": "opentelemetry-api",
    },
    "zope": {"zope.interface": "zope-interface", "zope.component": "zope-component"},
    "ruamel": {"ruamel.yaml": "ruamel-yaml"},
    "backports": {
        "backports.zoneinfo": "backports-zoneinfo",
        "backports.tarfile": "backports-tarfile",
    },
}
