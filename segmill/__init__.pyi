from segmill.promotion.loading import load as load
