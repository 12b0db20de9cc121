"""Faults to be put into the code: each was there once, or nearly so. The simulator has to find every one.

A mutant is a text that stands in a module exactly once, and what stands there instead.
"""

from typing import Final

from sim.mutant import Mutant
from sim.node_mutants import NODE_MUTANTS

_DISPATCHER: Final = "ntf_server/push/dispatcher.py"
_SCHEDULE: Final = "ntf_server/push/schedule.py"
_HEALTH: Final = "ntf_server/push/health.py"
_DELIVERIES: Final = "ntf_server/store/sqlite/deliveries.py"
_DATABASE: Final = "ntf_server/store/sqlite/database.py"

MUTANTS: Final = (
    Mutant(
        "B2 what waits for a retry keeps its place",
        "what waits keeps nobody out",
        _DISPATCHER,
        """        if notice is not None:
            _tell(notice)
""",
        """        if outcome.after:
            def unpark() -> None:
                lane.schedule.reserved -= 1
                lane.changed()
            lane.schedule.reserved += 1
            asyncio.get_running_loop().call_later(outcome.after, unpark, context=__import__("contextvars").Context())
        if notice is not None:
            _tell(notice)
""",
    ),
    Mutant(
        "B3 an origin that took nothing yet has all places",
        "an origin that is silent holds next to nothing",
        _SCHEDULE,
        "        origin = self._origins.get(key)\n        if origin is None:\n            return 1 if",
        "        return self._config.places\n        if origin is None:\n            return 1 if",
    ),
    Mutant(
        "B6 reads wait behind what is written",
        "a read waits for nobody",
        _DATABASE,
        "            self._reads.put(asked)\n",
        "            self._queue.put(asked)\n",
    ),
    Mutant(
        "B6 a lock is waited for as long as SQLite would",
        "under another's lock writes fail within a second",
        _DATABASE,
        "RETRY: Final = 0.8",
        "RETRY: Final = 5.0",
    ),
    Mutant(
        "B6 a lock is waited for anew by each of a group",
        "under another's lock writes fail within a second",
        _DATABASE,
        """            if not isinstance(told, StoreUnavailableError):
                break
            now = time.monotonic()
            limit = now if now >= self._give_up_at else now - RETRY
            results += [_Result(item, None, told) for item in items if item.asked <= limit]
            items = [item for item in items if item.asked > limit]
            if not items:
                return results, []
""",
        """            now = time.monotonic()
            began = now if pause == _PAUSES[0] else began
            if not isinstance(told, StoreUnavailableError) or now - began > RETRY:
                break
""",
    ),
    Mutant(
        "B7 what was received is dropped with the session",
        "what a socket has read is stored before the session ends",
        "smp_bridge/agent.py",
        """                raise
            await client.finish()
""",
        """                raise
""",
    ),
    Mutant(
        "B7 the inbox ends with the relay, whatever is in it",
        "what a socket has read is stored before the relay ends",
        "ntf_server/smp/subscriber.py",
        "        await self._inbox.close(max(0.0, ends_at - asyncio.get_running_loop().time()))\n",
        "        await self._inbox.close(0.0)\n",
    ),
    Mutant(
        "B8 an END of an old session ends what a new one subscribed",
        "an END counts in its own session",
        "ntf_server/store/sqlite/sessions.py",
        '''    """See `Store.end`."""
    server = _server(c, s, session)
''',
        '''    """See `Store.end`."""
    server = make_server(c, s, session.server)
''',
    ),
    Mutant(
        "B8 SNEW of an ended subscription subscribes nothing",
        "who subscribes again is subscribed",
        "ntf_server/store/sqlite/queues.py",
        "            if status not in WANTED or damaged is not None:\n",
        "            if damaged is not None:\n",
    ),
    Mutant(
        "X1 each spelling of a server is another server",
        "one queue is one subscription",
        "smp_bridge/address.py",
        '_identity", self._encode(sorted(self.reachable), self._plain_port))\n',
        '_identity", self.encode())\n',
    ),
    Mutant(
        "W8 a push names the server as its first device did",
        "an app finds the queue of a push",
        "ntf_server/store/sqlite/content.py",
        "    spelled = server_address(fromhex(spelling)) if spelling else addresses[server]\n",
        "    spelled = addresses[server]\n",
    ),
    Mutant(
        "B9 one damaged record is a corrupt file",
        "a damaged record is set aside, and the rest goes on",
        "ntf_server/store/sqlite/content.py",
        """        except SealingError:
            damaged.append(DamagedRowError("tokens", ref))
            continue
        claims.append(claim)
""",
        """        except SealingError as e:
            from ntf_server.store.sqlite.database import corrupt_error
            raise corrupt_error("the database", e) from e
        claims.append(claim)
""",
    ),
    Mutant(
        "B10 a part that fails is not started again",
        "whatever fails is looked after",
        "ntf_server/supervisor.py",
        """            self._tell(name, error)
            if stage in self._ended:
                return
""",
        """            return
""",
    ),
    Mutant(
        "B11 the clock is believed",
        "a step of the clock shifts no deadline into loss",
        "ntf_server/store/clock.py",
        "        if abs(step) > TOLERANCE:\n",
        "        if abs(step) > 1e12:\n",
    ),
    Mutant(
        "B12 a refused key is each push's own trouble",
        "who refuses all that we send is left alone",
        _HEALTH,
        "        self.pause(now, reason, longest=self._config.longest_pause)\n"
        '        return self._say(name, now, f"{name} refuses pushes for a fault',
        '        return self._say(name, now, f"{name} refuses pushes for a fault',
    ),
    Mutant(
        "K1 whoever asks gets a new provider token",
        "a provider token is renewed once in 20 minutes at most",
        "ntf_server/push/apns/provider_token.py",
        """        self._expired |= age >= RENEW_AT_MOST
        return self._expired
""",
        """        self._token = ""
        return True
""",
    ),
    Mutant(
        "K2 faults of the key wait ten minutes for each token",
        "a fault of ours that is over is over soon",
        "ntf_server/push/apns/judge.py",
        "    return Ours(what, _OURS.get(reason, Scope.TOKEN if status in _THIS_PUSH else Scope.PROVIDER))\n",
        "    return Ours(what, Scope.TOKEN)\n",
    ),
    Mutant(
        "K2 the project's quota is each token's",
        "who refuses all that we send is left alone",
        "ntf_server/push/fcm/judge.py",
        '        scope = Scope.TOKEN if "device" in message.lower() or code.startswith("DEVICE_") else Scope.PROVIDER\n'
        "        return Again(what, scope, answer.retry_after or _QUOTA_WAIT)\n",
        "        return Again(what, Scope.TOKEN, answer.retry_after)\n",
    ),
    Mutant(
        "K3 a connection that answers with errors is kept",
        "a connection that answers only with errors is left",
        "ntf_server/push/links.py",
        "        if link.errors < _ERRORS or now - self.left_at <= _LEAVE_AGAIN:\n",
        "        if link.errors:\n",
    ),
    Mutant(
        "K10 a period that begins in the future is waited for",
        "a wrong time is not believed for ever",
        "ntf_server/store/sqlite/tokens.py",
        "    for query in (_TO_CHECK, _FROM_THE_FUTURE):\n",
        "    for query in (_TO_CHECK,):\n",
    ),
    Mutant(
        "K12 a wrong topic is each token's end",
        "what worked is not marked bad for an operator's fault",
        _SCHEDULE,
        "                if claim.delivered_before and not health.proven and reason in _DOUBTFUL:\n",
        "                if False:\n",
    ),
    Mutant(
        "a token that is being pushed to is pushed to again",
        "one push in flight per token",
        "ntf_server/store/memory.py",
        """        held = self.claims.get(token)
        if held is not None:
            if not held.again:
                self.claims.put(token, replace(held, again=True))
            return True
""",
        "",
    ),
    Mutant(
        "what came during a push is forgotten",
        "the newest of each queue reaches its device",
        _DELIVERIES,
        "            s.pushed(token, held.lane, again=held.more or held.again or _left_out(claim, o))\n",
        "            s.pushed(token, held.lane, again=held.more or _left_out(claim, o))\n",
    ),
    Mutant(
        "more than one push holds is forgotten",
        "the newest of each queue reaches its device",
        _DELIVERIES,
        "            s.pushed(token, held.lane, again=held.more or held.again or _left_out(claim, o))\n",
        "            s.pushed(token, held.lane, again=held.again or _left_out(claim, o))\n",
    ),
    Mutant(
        "what came to a push is forgotten when the store fails",
        "an outcome is recorded in the end",
        _DISPATCHER,
        """                log.debug("cannot record what was pushed: %s", e)
                await asyncio.sleep(self._config.store_backoff)
""",
        """                log.debug("cannot record what was pushed: %s", e)
                return
""",
    ),
    Mutant(
        "what was claimed when the process died is not due",
        "what is stored survives kill -9",
        "ntf_server/store/sqlite/due.py",
        "    for statement in _RECOVER:\n",
        "    for statement in _RECOVER[2:]:\n",
    ),
    Mutant(
        "a push that failed is not due again",
        "a push is tried until its time is over",
        _DELIVERIES,
        "            due_at, attempts = _later(s, held, o.after), claim.attempts + 1\n",
        "            attempts = claim.attempts + 1\n",
    ),
    Mutant(
        "a push to the old device token counts for the new one",
        "what is stored reaches the device that is registered",
        _DELIVERIES,
        "        if held.stale:\n",
        "        if False:\n",
    ),
    Mutant(
        "notifications that the store refuses are dropped",
        "what a socket has read is stored",
        "ntf_server/smp/inbox.py",
        """                log.debug("the store fails, trying again: %s", e)  # which it says itself
                await asyncio.sleep(_STORE_BACKOFF)
""",
        """                log.debug("the store fails, trying again: %s", e)  # which it says itself
                raise
""",
    ),
    Mutant(
        "places that were kept for nothing are not given back",
        "a lane without pushes under way has room",
        _DISPATCHER,
        "        self.schedule.reserved -= offer.total\n",
        "        self.schedule.reserved -= min(1, offer.total)\n",
    ),
    Mutant(
        "who was passed over is not looked at again",
        "an origin whose pause is over is pushed to",
        _DISPATCHER,
        "            self.blocked |= offer.passed_over\n",
        "            pass\n",
    ),
    Mutant(
        "a session that is lost is not begun again",
        "every subscription is active again",
        "smp_bridge/agent.py",
        "                if not await self._connect_and_stay():\n",
        "                if await self._connect_and_stay():\n                    return\n                else:\n",
    ),
    Mutant(
        "an NSUB without an answer is not repeated",
        "every subscription is active again",
        "smp_bridge/queue_session.py",
        "                again.append(ref)\n",
        "                pass\n",
    ),
    Mutant(
        "a server that is silent is believed",
        "a dead connection is left",
        "smp_bridge/client.py",
        "                if not at_work or loop.time() - started_at >= _MAX_SILENCE:\n",
        "                if False:\n",
    ),
    Mutant(
        "B1 servers that nobody knows have the places of proven ones",
        "a server that comes back is connected to",
        "smp_bridge/turns.py",
        "        proven = self._standing.is_proven_at(route.prefixes)\n",
        "        proven = True\n",
    ),
    Mutant(
        "B1 a stranger may hold all places",
        "a server that comes back is connected to",
        "smp_bridge/places.py",
        "        self._each = max(1, total // share)\n",
        "        self._each = total\n",
    ),
    Mutant(
        "W2 a service that lost some of its queues is believed",
        "every subscription is active again",
        "smp_bridge/service.py",
        "    return Todo.AUDIT if ours.wanted else Todo.NOTHING\n",
        "    return Todo.NOTHING\n",
    ),
    Mutant(
        "W2 a service that lost all of its queues is believed",
        "every subscription is active again",
        "smp_bridge/service.py",
        "        return Todo.PAGES\n",
        "        return Todo.NOTHING\n",
    ),
    Mutant(
        "W2 a service that was taken over is not taken back",
        "every subscription is active again",
        "smp_bridge/service.py",
        "        if self._taken_over:\n            return None\n",
        "        return None\n",
    ),
    Mutant(
        "what expired is not counted",
        "expired is counted",
        "ntf_server/store/effects.py",
        "            metrics.count_kind(KindCounter.EXPIRED, kind, count)\n",
        "            pass\n",
    ),
    *NODE_MUTANTS,
)
