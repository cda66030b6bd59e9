"""The gRPC side of a service: server, channel and the interceptors between wire and servicer."""
