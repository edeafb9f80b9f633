"""Engines that come with the SDK, one module or package each; nothing is imported here."""
