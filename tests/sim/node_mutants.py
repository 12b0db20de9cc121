"""Faults to be put into what several nodes share: leases, fences, scripts that are done twice. See `mutants`."""

from typing import Final

from sim.mutant import Mutant

_REDIS: Final = "ntf_server/store/redis/"
_LUA: Final = f"{_REDIS}lua/"

NODE_MUTANTS: Final = (
    Mutant(
        "N1 a shard's lease is not renewed",
        "one push in flight for a token in all nodes",
        f"{_LUA}hold.lua",
        "        call('HSET', shard, 'until', until_ms)\n        out[i] = given\n",
        "        out[i] = given\n",
    ),
    Mutant(
        "N2 a shard is taken whoever has it",
        "one push in flight for a token in all nodes",
        f"{_LUA}hold.lua",
        "    elseif over or (",
        "    elseif given ~= '-' or over or (",
    ),
    Mutant(
        "N3 a server's lease is not renewed",
        "one node speaks for a server",
        f"{_LUA}renew.lua",
        "call('HSET', server, 'until', text(now_ms(ARGV[1]) + tonumber(ARGV[3])))\n",
        "",
    ),
    Mutant(
        "N4 who cannot renew keeps its sessions",
        "the old holder's session is closed within a lease",
        "ntf_server/smp/shares.py",
        "        if self.held and now - self._renewed_at >=",
        "        if not self.held and now - self._renewed_at >=",
    ),
    Mutant(
        "N5 who lost a server keeps its session",
        "the old holder's session is closed within a lease",
        "ntf_server/smp/shares.py",
        "                del self.held[session.server]\n                self._release(session.server)\n\n    def _let",
        "                del self.held[session.server]\n\n    def _let",
    ),
    Mutant(
        "N6 take does not know its own call again",
        "a script may be done twice",
        f"{_LUA}take.lua",
        "        has = has or (lane and t.q.m == mark)",
        "        has = has",
    ),
    Mutant(
        "N7 notify does not know its own call again",
        "a script may be done twice",
        f"{_LUA}notify.lua",
        "    local lane, again = t[5], free and t.q.m == mark",
        "    local lane, again = t[5], false",
    ),
    Mutant(
        "N8 what a dead node had is nobody's",
        "everything that was stored reaches its device",
        f"{_LUA}recover.lua",
        "                due(shard, id, lane, at)\n",
        "",
    ),
    Mutant(
        "N9 a shard is given away with pushes under way",
        "one push in flight for a token in all nodes",
        f"{_REDIS}node.py",
        "        idle = numbers - busy\n",
        "        idle = numbers\n",
    ),
    Mutant(
        "N10 a fence is one more than the last, no more",
        "a fence does not go back",
        f"{_LUA}acquire.lua",
        "text(math.max(tonumber(s[2] or 0) + 1, tonumber(t[1]) * 1000000 + tonumber(t[2]), tonumber(ARGV[5])))",
        "text(math.max(tonumber(s[2] or 0) + 1, tonumber(ARGV[5])))",
    ),
    Mutant(
        "N11 how many replicas have it is not looked at",
        "what has to be on a replica outlives a failover",
        f"{_REDIS}durability.py",
        "        if self.replicas and (there := rest.pop(0)) < self.replicas:\n",
        "        if self.replicas and (there := rest.pop(0)) < 0:\n",
    ),
    Mutant(
        "N12 a script that the server does not have is not sent",
        "scripts may be forgotten",
        f"{_REDIS}remedy.py",
        '    if code == "NOSCRIPT":\n        return InFull()\n',
        "",
    ),
    Mutant(
        "N13 what is handed out and may not have arrived stays so",
        "everything that was stored reaches its device",
        f"{_REDIS}node.py",
        "        self._stranded = self.calls\n\n",
        "        self._stranded = None\n\n",
    ),
    Mutant(
        "N14 what came of pushes is not made good after a loss",
        "what is lost with Redis is made good",
        f"{_REDIS}engine.py",
        "        self._node.strand()\n        self._spawn(stream.doubt(",
        "        self._spawn(stream.doubt(",
    ),
    Mutant(
        "N15 by which call something was handed out is not made good after a loss",
        "what is lost with Redis is made good",
        f"{_LUA}recover.lua",
        "mark ~= '' and mark ~= taken[i + 1]",
        "not mark",
    ),
    Mutant(
        "N16 that Redis began anew is not noticed",
        "what is lost with Redis is made good",
        f"{_REDIS}database.py",
        "        if history != before and not self._durability.disks:",
        "        if False:",
    ),
    Mutant(
        "N17 after a loss devices are not told to look",
        "what is lost with Redis is made good",
        f"{_REDIS}engine.py",
        '        self._spawn(stream.doubt(self._node, self._changes), "what may be lost")\n',
        "",
    ),
    Mutant(
        "N18 a failover is not noticed",
        "what is lost with Redis is made good",
        f"{_REDIS}database.py",
        "        if gone - {None} and not self._durability.replicas:",
        "        if False:",
    ),
    Mutant(
        "N19 who has a shard no more hands out of it",
        "an old fence is refused",
        f"{_LUA}notify.lua",
        "    local mine = fence ~= '' and call('HGET', shard, 'fence') == fence\n",
        "    local mine = fence ~= ''\n",
    ),
    Mutant(
        "N20 who speaks for a server no more is believed",
        "an old fence is refused",
        f"{_LUA}prelude.lua",
        "    if kept > tonumber(fence) then return redis.error_reply(FENCED) end\n",
        "",
    ),
)
