package controller

import (
	"context"
	"errors"
	"net/http"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// synced is ready as soon as the cache has all objects.
func synced(c cache.Cache) func(*http.Request) error {
	return func(q *http.Request) error {
		ctx, cancel := context.WithTimeout(q.Context(), time.Second)
		defer cancel()
		if !c.WaitForCacheSync(ctx) {
			return errors.New("the cache does not have all objects yet")
		}
		return nil
	}
}
