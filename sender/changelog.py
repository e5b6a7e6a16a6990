from sender.services import Services


class Changelog:
    def __init__(self, services: Services) -> None:
        self._services = services
