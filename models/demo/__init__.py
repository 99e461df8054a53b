"""The demo model: generated chest phantoms, bilingual dialogues about them, and a small checkpoint trained on both."""
