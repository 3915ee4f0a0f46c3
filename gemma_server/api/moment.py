"""A moment as text."""

from datetime import datetime


def rfc3339(moment: datetime) -> str:
    """A time in UTC, as Go reads it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
