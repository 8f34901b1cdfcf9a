package controller

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	toolscache "k8s.io/client-go/tools/cache"
)

// askAgain is after how long, at least, an API server is asked again that was away. The
// pauses of client-go's own grow to a minute, and as long after its return replicas would
// serve what had been before, and who leads would know nothing newer.
const askAgain = 3 * time.Second

// newInformer is client-go's, but for what it does while the API server is away.
func newInformer(lw toolscache.ListerWatcher, o runtime.Object, resync time.Duration, indexers toolscache.Indexers) toolscache.SharedIndexInformer {
	if l, ok := lw.(*toolscache.ListWatch); ok {
		l.ListWithContextFunc, l.WatchFuncWithContext = untilHeard(l.ListWithContextFunc), untilHeard(l.WatchFuncWithContext)
	}
	return toolscache.NewSharedIndexInformer(lw, o, resync, indexers)
}

// untilHeard asks until there is an answer that means more than that there is none yet.
func untilHeard[T any](ask func(context.Context, metav1.ListOptions) (T, error)) func(context.Context, metav1.ListOptions) (T, error) {
	return func(ctx context.Context, o metav1.ListOptions) (T, error) {
		for {
			answer, err := ask(ctx, o)
			if err == nil || apierrors.ReasonForError(err) != metav1.StatusReasonUnknown && !apierrors.IsTooManyRequests(err) && !apierrors.IsServiceUnavailable(err) {
				return answer, err
			}
			select {
			case <-ctx.Done():
				return answer, err
			case <-time.After(wait.Jitter(askAgain, 1)):
			}
		}
	}
}
