"""``monai-adv try``: one phantom patient, and a plain model beside the same one made robust, in under a minute."""
