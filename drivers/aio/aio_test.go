package aio_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/moraine-storage/moraine/drivers/aio"
	"github.com/moraine-storage/moraine/drivers/aio/aiotest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestInline(t *testing.T) {
	aiotest.Run(t, func() (aio.Engine, error) { return aio.New(aio.Inline) })
}

func TestThreads(t *testing.T) {
	aiotest.Run(t, func() (aio.Engine, error) { return aio.New(aio.Threads) })
}

func TestUring(t *testing.T) {
	aio.RingSetsOf(t, aiotest.Run)
}

func TestAuto(t *testing.T) {
	aiotest.Run(t, func() (aio.Engine, error) { return aio.New(aio.Auto) })
}

func TestUnknownMode(t *testing.T) {
	if e, err := aio.New("fast"); err == nil {
		e.Close()
		t.Fatal("an unknown mode was accepted")
	}
}
