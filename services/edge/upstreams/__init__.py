"""The way to the models' providers: routing, channel health, transport, failover."""
