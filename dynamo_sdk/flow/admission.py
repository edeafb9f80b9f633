"""``AdmissionQueue``: who goes next when every worker is full.

Priorities first, strictly: nobody of a lower one goes while a higher one waits. Within a priority, tenants
share by *deficit round robin* (Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin"): a
visit gives a tenant its quantum in tokens, and its requests go as long as what it has been given covers
their cost. A request costs the prompt tokens that it has to compute; nobody is free, so every queue moves.
Requests of one tenant keep their order.

Sans-IO: whoever asks for ``next`` has found room for one request.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from dynamo_sdk.errors import Overloaded


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """``quanta``: tokens per visit, by tenant; others have ``default_quantum``. At most ``max_waiting``
    requests wait, and ``max_waiting_per_tenant`` of one tenant."""

    default_quantum: int = 2048
    quanta: Mapping[str, int] = field(default_factory=dict)
    max_waiting: int = 4096
    max_waiting_per_tenant: int = 1024

    def quantum(self, tenant: str) -> int:
        return max(1, self.quanta.get(tenant, self.default_quantum))


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """``priority``: smaller goes first. ``cost``: prompt tokens to compute; less than 1 counts as 1."""

    request_id: str
    tenant: str = ""
    priority: int = 0
    cost: int = 1


@dataclass(slots=True)
class _Line:
    """What waits of one tenant in one priority."""

    tenant: str
    deficit: int = 0
    requests: deque[Waiting] = field(default_factory=deque)


class AdmissionQueue:
    """Bounded by its limits; a tenant with nothing to wait for is forgotten, and with it what it had left."""

    def __init__(self, limits: AdmissionLimits | None = None) -> None:
        self.limits = limits or AdmissionLimits()
        self._rings: dict[int, deque[_Line]] = {}  # by priority; the tenant whose turn it is first
        self._lines: dict[tuple[int, str], _Line] = {}
        self._waiting: dict[str, Waiting] = {}
        self._num_by_tenant: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def num_waiting(self, tenant: str) -> int:
        return self._num_by_tenant.get(tenant, 0)

    def put(self, request: Waiting) -> None:
        """Raises ``Overloaded`` when a limit is reached, ``ValueError`` for an id that waits already."""
        if request.request_id in self._waiting:
            raise ValueError(f"request {request.request_id!r} waits already")
        limits, num_of_tenant = self.limits, self.num_waiting(request.tenant)
        if len(self._waiting) >= limits.max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests wait for a worker; no more are taken")
        if num_of_tenant >= limits.max_waiting_per_tenant:
            raise Overloaded(f"{num_of_tenant} requests of this tenant wait for a worker; no more are taken")
        key = (request.priority, request.tenant)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(request.tenant)
            self._rings.setdefault(request.priority, deque()).append(line)
        line.requests.append(request)
        self._waiting[request.request_id] = request
        self._num_by_tenant[request.tenant] = num_of_tenant + 1

    def next(self) -> Waiting | None:
        """Take the one who goes now; None when nobody waits."""
        if not self._rings:
            return None
        priority = min(self._rings)
        ring = self._rings[priority]
        self._skip_rounds(ring)
        while True:
            line = ring[0]
            request = line.requests[0]
            cost = max(1, request.cost)
            if line.deficit < cost:
                line.deficit += self.limits.quantum(line.tenant)
                if line.deficit < cost:
                    ring.rotate(-1)
                    continue
            line.deficit -= cost
            line.requests.popleft()
            self._forget(request)
            if not line.requests:
                self._end(priority, line)
            elif line.deficit < max(1, line.requests[0].cost):
                ring.rotate(-1)  # its turn is over; what is left of its quantum stays
            return request

    def remove(self, request_id: str) -> bool:
        """It does not wait any more; False if it did not."""
        request = self._waiting.get(request_id)
        if request is None:
            return False
        line = self._lines[request.priority, request.tenant]
        if line.requests[0] is request:  # what was saved up for it alone is given up
            line.deficit = min(line.deficit, self.limits.quantum(line.tenant))
        line.requests.remove(request)
        self._forget(request)
        if not line.requests:
            self._end(request.priority, line)
        return True

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` when the books do not add up. For tests."""
        lines = [line for ring in self._rings.values() for line in ring]
        assert {id(line) for line in lines} == {id(line) for line in self._lines.values()}
        assert len(lines) == len(self._lines)
        assert all(line.requests for line in lines), "a tenant with nothing to wait for is remembered"
        waiting = [request for line in lines for request in line.requests]
        assert len(waiting) == len(self._waiting)
        assert {request.request_id for request in waiting} == set(self._waiting)
        for tenant, number in self._num_by_tenant.items():
            assert number == sum(request.tenant == tenant for request in waiting) > 0
        for line in lines:
            assert (
                0
                <= line.deficit
                < self.limits.quantum(line.tenant) + max(max(1, request.cost) for request in line.requests)
            )

    def _skip_rounds(self, ring: deque[_Line]) -> None:
        """Whole rounds in which nobody could go, at once: a large request takes no visit per quantum."""
        num_rounds = min(
            -((line.deficit - max(1, line.requests[0].cost)) // self.limits.quantum(line.tenant))
            for line in ring
        )
        for line in ring:
            line.deficit += max(0, num_rounds - 1) * self.limits.quantum(line.tenant)

    def _forget(self, request: Waiting) -> None:
        del self._waiting[request.request_id]
        left = self._num_by_tenant[request.tenant] - 1
        if left:
            self._num_by_tenant[request.tenant] = left
        else:
            del self._num_by_tenant[request.tenant]

    def _end(self, priority: int, line: _Line) -> None:
        del self._lines[priority, line.tenant]
        ring = self._rings[priority]
        ring.remove(line)
        if not ring:
            del self._rings[priority]
