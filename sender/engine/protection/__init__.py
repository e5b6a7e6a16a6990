"""What keeps tokens and credentials from harm while a campaign is sent.

    guard (trusting: the slow start) ── tokens: is it they who are wrong, or our configuration?
    healing                          ── devices imported with the wrong environment
    canary                           ── a sample first
    breaker (watching, window)       ── credentials: when APNs turns away, nobody sends

The rules themselves are pure and in `sender.policy`, a module of the same name each.
"""
