"""Monte Carlo step labels: sampled solutions, and how often each of their prefixes ends right."""
