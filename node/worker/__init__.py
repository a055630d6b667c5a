"""Workers: strangers' models and inputs run in sandboxed processes; content-addressed models; nothing else.

Law: this room knows neither the protocol nor any other room of the node. `supervisor` is its one door.
"""
