from sender.services import Services


class Campaigns:
    def __init__(self, services: Services) -> None:
        self._services = services
