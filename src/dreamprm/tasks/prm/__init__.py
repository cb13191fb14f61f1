"""Process reward models: solutions of several domains, weighted by domain."""
