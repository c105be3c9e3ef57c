"""Buckets that refuse something."""

from __future__ import annotations

import json


def deletion_denied(bucket: str) -> str:
    """Return a bucket's policy by which nobody may delete its objects."""
    objects = f"arn:aws:s3:::{bucket}/*"
    refusal = {"Effect": "Deny", "Principal": "*", "Action": "s3:DeleteObject", "Resource": objects}
    return json.dumps({"Version": "2012-10-17", "Statement": [refusal]})
