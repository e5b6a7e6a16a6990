from sender.services import Services


class Devices:
    def __init__(self, services: Services) -> None:
        self._services = services
