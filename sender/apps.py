from sender.services import Services


class Apps:
    def __init__(self, services: Services) -> None:
        self._services = services
