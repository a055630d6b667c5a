"""What is found out about a grammar before any text is walked: that walks over no byte end, and how deep rules are.

Law: all of it takes time in proportion to the grammar, and none of it calls itself: a stranger's grammar may be one
long chain.
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Protocol

ENDLESS = 1 << 30
"""The depth of what is never complete."""


class Network(Protocol):
    """The automata of all rules, by state."""

    edges: list[list[tuple[int, int]]]
    free: list[list[int]]
    calls: list[list[tuple[int, int]]]
    ends: dict[int, None]
    names: dict[int, str]


def empty_rules(network: Network) -> list[bool]:
    """For each state whether its rule may end there without another byte."""
    reach: list[list[int]] = [[] for _ in network.free]  # backwards over no byte
    waiting_calls: dict[int, list[tuple[int, int]]] = {}
    for state, (free, calls) in enumerate(zip(network.free, network.calls, strict=True)):
        for then in free:
            reach[then].append(state)
        for begin, then in calls:
            waiting_calls.setdefault(begin, []).append((state, then))
    empty = [False] * len(network.free)
    waiting = list(network.ends)
    for state in waiting:
        empty[state] = True
    while waiting:
        state = waiting.pop()
        found = list(reach[state])
        for caller, then in waiting_calls.pop(state, ()):  # the rule that begins here may be empty: calls are free
            reach[then].append(caller)
            if empty[then]:
                found.append(caller)
        for before in found:
            if not empty[before]:
                empty[before] = True
                waiting.append(before)
    return empty


def refuse_left_recursion(network: Network) -> str | None:
    """Why the grammar can't be walked: the name of a rule that could begin with itself; None if there is none."""
    empty = empty_rules(network)
    group = _groups(network, empty)
    for state, calls in enumerate(network.calls):
        for begin, _ in calls:
            if group[begin] == group[state]:
                return f"{network.names[begin]} could begin with itself (left recursion)"
    return None


def _over_no_byte(network: Network, empty: list[bool], state: int) -> Iterator[int]:
    yield from network.free[state]
    for begin, then in network.calls[state]:
        yield begin
        if empty[begin]:
            yield then


def _groups(network: Network, empty: list[bool]) -> list[int]:
    """For each state the number of its strongly connected component over no byte (Tarjan, without recursion)."""
    count = len(network.free)
    order, lowest, group = [-1] * count, [0] * count, [-1] * count
    stack: list[int] = []
    met = 0
    for root in range(count):
        if order[root] >= 0:
            continue
        path = [(root, _over_no_byte(network, empty, root))]
        order[root] = lowest[root] = met
        met += 1
        stack.append(root)
        while path:
            state, following = path[-1]
            then = next(following, None)
            if then is None:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[state])
                if lowest[state] == order[state]:
                    while group[state] < 0:
                        group[stack.pop()] = state
            elif order[then] < 0:
                order[then] = lowest[then] = met
                met += 1
                stack.append(then)
                path.append((then, _over_no_byte(network, empty, then)))
            elif group[then] < 0:
                lowest[state] = min(lowest[state], order[then])
    return group


def tails(network: Network) -> list[bool]:
    """For each state whether nothing can follow it in its rule: whoever returns there returns further at once."""
    backwards: list[list[int]] = [[] for _ in network.free]
    for state, free in enumerate(network.free):
        for then in free:
            backwards[then].append(state)

    def reaching(found: list[int]) -> list[bool]:
        reached = [False] * len(network.free)
        for state in found:
            reached[state] = True
        while found:
            for before in backwards[found.pop()]:
                if not reached[before]:
                    reached[before] = True
                    found.append(before)
        return reached

    busy = reaching([state for state in range(len(network.free)) if network.edges[state] or network.calls[state]])
    ending = reaching(list(network.ends))
    return [ends and not works for ends, works in zip(ending, busy, strict=True)]


def least_depths(network: Network, tail: list[bool]) -> list[int]:
    """For each state the least room on the stack with which its rule can be completed; ENDLESS if it never can."""
    backwards: list[list[int]] = [[] for _ in network.free]
    returning: list[list[tuple[int, int]]] = [[] for _ in network.free]
    entering: list[list[tuple[int, int]]] = [[] for _ in network.free]
    for state in range(len(network.free)):
        for then in (*network.free[state], *(then for _, then in network.edges[state])):
            backwards[then].append(state)
        for begin, then in network.calls[state]:
            returning[then].append((state, begin))
            entering[begin].append((state, then))
    depth = [ENDLESS] * len(network.free)
    waiting = [(0, state) for state in network.ends]
    while waiting:
        least, state = heappop(waiting)
        if depth[state] <= least:
            continue
        depth[state] = least
        for before in backwards[state]:
            if least < depth[before]:
                heappush(waiting, (least, before))
        for caller, begin in returning[state]:
            needed = max(depth[begin] if tail[state] else depth[begin] + 1, least)
            if needed < depth[caller]:
                heappush(waiting, (needed, caller))
        for caller, then in entering[state]:
            needed = max(least if tail[then] else least + 1, depth[then])
            if needed < depth[caller]:
                heappush(waiting, (needed, caller))
    return depth
