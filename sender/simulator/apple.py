"""The simulated APNs itself: from a complete request to a reply. No I/O; time comes in as an argument."""

from __future__ import annotations

from collections.abc import Iterable

from sender.model import Environment
from sender.simulator import replies
from sender.simulator.behaviour import PASSING, Behaviour, Rule, behaviour_of, fraction_of
from sender.simulator.journal import Journal
from sender.simulator.providers import Providers, Verdict
from sender.simulator.replies import Reply, rejection
from sender.simulator.requests import BAD_TOKEN, MISSING_TOPIC, TOPIC_DISALLOWED, Shape
from sender.simulator.scenario import Scenario, Storm

_YEAR_MS = 365 * 86_400_000
_NOT_FOR_TOPIC = rejection(400, "DeviceTokenNotForTopic")
_THROTTLED = rejection(429, "TooManyRequests")
_ERRORS = (rejection(500, "InternalServerError"), rejection(503, "ServiceUnavailable"))


class SimulatedApns:
    """What all connections share: scenario, rules, who may push what, tries of tokens, the journal."""

    def __init__(self, scenario: Scenario, *, topics: Iterable[str], providers: Providers, journal: Journal) -> None:
        self.topics = frozenset(topics)
        self.providers = providers
        self.journal = journal
        self.set_scenario(scenario, now=0.0)

    def set_scenario(self, scenario: Scenario, *, now: float) -> None:
        """Behave like this from now on; tokens' tries start anew."""
        self.scenario = scenario
        self.began_at = now
        self.began_after = self.journal.requests
        self.delayed = bool(scenario.latency_ms or scenario.jitter_ms)
        self._tries: dict[bytes, int] = {}
        self._plain = not any(scenario.shares.model_dump().values()) and scenario.token_environment is None
        self.set_rules(scenario.rules)

    def set_rules(self, rules: Iterable[Rule]) -> None:
        """Replace the rules; of several for a token the last holds, and a token's own before a prefix."""
        self._by_token: dict[bytes, Rule] = {}
        self._by_prefix: list[tuple[bytes, Rule]] = []
        self.add_rules(rules)

    def add_rules(self, rules: Iterable[Rule]) -> None:
        """Add rules to those that there are."""
        for rule in rules:
            self._by_token.update((token.encode(), rule) for token in rule.tokens)
            if rule.prefix is not None:
                self._by_prefix.insert(0, (rule.prefix.lower().encode(), rule))

    def forget(self) -> None:
        """Forget what was received, the tries of tokens and the provider tokens seen; rules and scenario stay."""
        self.journal.clear()
        self.providers.forget()
        self._tries.clear()
        self.began_after = 0

    def authenticate(
        self,
        shape: Shape,
        environment: Environment,
        certified: frozenset[str] | None,
        known: dict[bytes, Verdict],
        now: float,
    ) -> Reply | None:
        """What is wrong with who pushes and to which topic; None for nothing. `certified`: a certificate's topics."""
        allowed = self.topics
        if certified is None:
            rules = self.scenario.provider_tokens
            verdict = self.providers.judge(shape.authorization, environment, known, rules, now)
            if verdict.fault is not None:
                return verdict.fault
            allowed = verdict.topics or allowed
        if shape.fault is not None:
            return shape.fault
        if not shape.topic:
            return MISSING_TOPIC if certified is None else None
        if certified is not None and not {shape.bundle_id, shape.topic} & certified:
            return TOPIC_DISALLOWED
        return TOPIC_DISALLOWED if allowed and shape.bundle_id not in allowed else None

    def delay_of(self, token: bytes) -> float:
        """Seconds that every answer takes, with the token's jitter."""
        scenario = self.scenario
        jitter = scenario.jitter_ms * fraction_of(token, scenario.seed + 3) if scenario.jitter_ms else 0.0
        return (scenario.latency_ms + jitter) / 1000

    def decide(self, token: bytes, environment: Environment, shape: Shape, now: float) -> Reply:
        """The reply to a request that is in order, by rule, storm or the token's hash."""
        if self.scenario.storms and (storm := self._storm(token, now)) is not None:
            reason = replies.USUAL_REASON.get(storm.status, "") if storm.reason is None else storm.reason
            return rejection(storm.status, reason)
        if self._by_token or self._by_prefix:
            rule = self._by_token.get(token) or self._prefixed(token)
            if rule is not None:
                return self._by_rule(rule, token, environment, shape, now)
        if self._plain:
            return replies.ACCEPTED
        behaviour = behaviour_of(token, self.scenario.shares, self.scenario.seed)
        if behaviour is Behaviour.ACCEPTED and self.scenario.token_environment not in (None, environment):
            return BAD_TOKEN
        return self._behave(behaviour, token, environment, now, tries=self.scenario.tries)

    def _prefixed(self, token: bytes) -> Rule | None:
        return next((rule for prefix, rule in self._by_prefix if token.startswith(prefix)), None)

    def _storm(self, token: bytes, now: float) -> Storm | None:
        since, requests = now - self.began_at, self.journal.requests - self.began_after
        for storm in self.scenario.storms:
            if since < storm.after_seconds or requests < storm.after_requests:
                continue
            if storm.for_seconds is not None and since >= storm.after_seconds + storm.for_seconds:
                continue
            if storm.for_requests is not None and requests >= storm.after_requests + storm.for_requests:
                continue
            if storm.share >= 1 or fraction_of(token, self.scenario.seed + 1) < storm.share:
                return storm
        return None

    def _by_rule(self, rule: Rule, token: bytes, environment: Environment, shape: Shape, now: float) -> Reply:
        if rule.environment not in (None, environment):
            return BAD_TOKEN
        if rule.topic is not None and rule.topic != shape.bundle_id:
            return _NOT_FOR_TOPIC
        tries = self.scenario.tries if rule.tries is None else rule.tries
        delay = rule.latency_ms / 1000
        if rule.status is not None:
            if rule.tries and self._passed(token, rule.tries):
                return replies.accepted_after(delay) if delay else replies.ACCEPTED
            if rule.status == 410 and rule.reason:
                return replies.gone(rule.reason, rule.timestamp if rule.timestamp is not None else int(now * 1000))
            return rejection(rule.status, rule.reason, delay=delay)
        reply = self._behave(
            rule.behaviour, token, environment, now, tries=tries, timestamp=rule.timestamp, code=rule.reset_code
        )
        return replies.accepted_after(delay) if delay and reply is replies.ACCEPTED else reply

    def _passed(self, token: bytes, tries: int) -> bool:
        """Whether the token has used its tries up; counts this one when not. 0: never."""
        used = self._tries.get(token, 0)
        if tries and used >= tries:
            return True
        self._tries[token] = used + 1
        return False

    def _behave(
        self,
        behaviour: Behaviour,
        token: bytes,
        environment: Environment,
        now: float,
        *,
        tries: int,
        timestamp: int | None = None,
        code: int | None = None,
    ) -> Reply:
        if behaviour in PASSING and self._passed(token, tries):
            return replies.ACCEPTED
        at = int(now * 1000) if timestamp is None else timestamp
        match behaviour:
            case Behaviour.ACCEPTED:
                return replies.ACCEPTED
            case Behaviour.UNREGISTERED:
                return replies.gone("Unregistered", at)
            case Behaviour.STALE_UNREGISTERED:
                return replies.gone("Unregistered", at - _YEAR_MS if timestamp is None else timestamp)
            case Behaviour.EXPIRED_TOKEN:
                return replies.gone("ExpiredToken", at)
            case Behaviour.BAD:
                return BAD_TOKEN
            case Behaviour.OTHER_ENVIRONMENT:
                return BAD_TOKEN if environment is Environment.PRODUCTION else replies.ACCEPTED
            case Behaviour.ERRORS:
                return _ERRORS[fraction_of(token, self.scenario.seed + 2) < 0.5]
            case Behaviour.RESET | Behaviour.RESET_AFTER_HEADERS:
                wanted = self.scenario.reset_code if code is None else code
                return replies.reset(wanted, after_headers=behaviour is Behaviour.RESET_AFTER_HEADERS)
            case Behaviour.SLOW:
                return replies.accepted_after(self.scenario.slow_ms / 1000)
            case _:
                return _FIXED[behaviour]


_FIXED = {
    Behaviour.WRONG_TOPIC: _NOT_FOR_TOPIC,
    Behaviour.THROTTLED: _THROTTLED,
    Behaviour.EMPTY_ERROR: rejection(503, ""),
    Behaviour.REFUSED: replies.REFUSED,
    Behaviour.SILENT: replies.SILENT,
    Behaviour.ANSWER_LOST: replies.ANSWER_LOST,
    Behaviour.DROPPED_BEFORE: replies.DROPPED_BEFORE,
    Behaviour.DROPPED_AFTER: replies.DROPPED_AFTER,
    Behaviour.NO_APNS_ID: replies.NO_APNS_ID,
    Behaviour.UPPER_CASE_ID: replies.UPPER_CASE_ID,
}
