"""Edit requests and probes, their files and their contradictions: the everyday names of :mod:`corsa_plugins.data`."""

from corsa_plugins.data.contradictions import RequestConflict, RequestIssues, check_requests
from corsa_plugins.data.reading import read_probes, read_requests, write_probes, write_requests
from corsa_plugins.data.requests import EditRequest, Probe, RequestError

__all__ = [
    "EditRequest",
    "Probe",
    "RequestConflict",
    "RequestError",
    "RequestIssues",
    "check_requests",
    "read_probes",
    "read_requests",
    "write_probes",
    "write_requests",
]
