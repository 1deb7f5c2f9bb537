"""Files that can be trusted: published whole, hashed, locked, logged line by line.

Knows nothing about what the files mean: tensors, recipes and reports are bytes, JSON and folders here.
"""

from moesaic.files.disk import check_space, sha256_file
from moesaic.files.locking import lock
from moesaic.files.log import JsonlWriter, read_jsonl
from moesaic.files.manifest import MANIFEST, read_manifest, write_manifest
from moesaic.files.plain import digest, read_json, read_json_list, read_sealed, write_bytes, write_json, write_sealed
from moesaic.files.publishing import gather, is_published, publish, versions, write_new

__all__ = ["MANIFEST", "JsonlWriter", "check_space", "digest", "gather", "is_published", "lock", "publish"]
__all__ += ["read_json", "read_json_list", "read_jsonl", "read_manifest", "read_sealed", "sha256_file", "versions"]
__all__ += ["write_bytes", "write_json", "write_manifest", "write_new", "write_sealed"]
