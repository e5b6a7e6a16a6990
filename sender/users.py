from sender.services import Services


class Users:
    def __init__(self, services: Services) -> None:
        self._services = services
