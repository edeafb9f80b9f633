"""What the tests of several plugins do with a real engine. On the path of their tests, never installed."""
