from sender.services import Services


class Activity:
    def __init__(self, services: Services) -> None:
        self._services = services
